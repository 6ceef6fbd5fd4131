"""Files that are whole or not there, also where the process is killed meanwhile."""

import json
import os


def write_json(path, content):
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write(path, lambda part: part.write_text(text, encoding="utf-8"))


def write(path, save):
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    save(part)
    os.replace(part, path)


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))
