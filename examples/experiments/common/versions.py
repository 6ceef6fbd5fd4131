"""What made a number: the command, the day, the versions."""

import datetime
import platform
import sys
from importlib.metadata import version

import torchlipreg

LIBRARIES = ("torch", "torchvision", "secml-torch", "pyautoattack")
OF_ONE_MACHINE = ("--data", "--out", "--results")


def versions():
    libraries = {library: version(library) for library in LIBRARIES}
    return {"torchlipreg": torchlipreg.__version__, "python": platform.python_version(), **libraries}


def today():
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def made_by(command):
    return {"command": command, "date": today(), "versions": versions()}


def command_line(module, arguments):
    """The command that makes the results anew, without what is of one machine or of one call only."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for name in OF_ONE_MACHINE:
        if name in words:
            del words[words.index(name) : words.index(name) + 2]
    words = [word for word in words if word not in ("--collect", "--timing")]
    return " ".join(["python", "-m", module, *words])
