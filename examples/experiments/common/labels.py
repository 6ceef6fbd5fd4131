"""Labels beside the points of a picture."""

from matplotlib.text import Text
from matplotlib.transforms import Bbox


def place(axis, labels, size=10):
    """Put each label beside its point, moved up or down until it lies on no other label and on no point.

    Args:
        axis: Whose limits are final.
        labels: (x, y, text, colour) each.
        size: Of the letters.
    """
    axis.figure.canvas.draw()
    points = axis.transData.transform([(x, y) for x, y, *_ in labels])
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in points]
    for x, y, text, colour in sorted(labels, key=lambda label: -label[1]):
        for offset in sorted(range(-152, 153, 4), key=lambda offset: abs(offset - 8)):  # 8: above its own error bar
            arrow = {"arrowstyle": "-", "color": colour, "alpha": 0.4, "shrinkB": 3} if abs(offset) > 12 else None
            style = {"color": colour, "fontsize": size, "va": "center", "arrowprops": arrow}
            note = axis.annotate(text, (x, y), (10, offset), textcoords="offset points", **style)
            note.update_positions(axis.figure.canvas.get_renderer())
            box = Text.get_window_extent(note)  # of the words alone, not of the line to the point
            inside = axis.bbox.y0 < box.y0 and box.y1 < axis.bbox.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            note.remove()
