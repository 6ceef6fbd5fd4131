"""timm: a training task with a penalty, and a launcher that runs timm's train.py with one.

Around a task, in a loop of your own::

    from torchlipreg.integrations.timm import LipschitzTask

    task = LipschitzTask(ClassificationTask(model, criterion), LipschitzPenalty("tv", weight=0.05))

Around timm's train.py as it is, also under torchrun::

    python -m torchlipreg.integrations.timm train.py --data-dir ... --lip-method tv --lip-weight 0.05
"""

from torchlipreg.integrations._timm_launcher import main
from torchlipreg.integrations._timm_task import LipschitzTask

__all__ = ["LipschitzTask", "main"]

if __name__ == "__main__":
    main()
