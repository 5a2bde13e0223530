"""Runs many command lines of rlef_jax.train quickly: one process that has imported everything, a fork for each line.

Reads JSON lists of arguments from standard input, one a line; answers each with {"code", "out", "err"} on one line.
The training itself is replaced by a print: what is tested is everything before it.
"""

import json
import os
import sys
import tempfile

from rlef_jax import command_line


def run(config, workdir):
    print("ran", sorted(config.to_dict()), workdir)


def one(arguments):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = ["train.py", *arguments]
            code = 99
            try:
                command_line.main(run)
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
            except BaseException:
                import traceback

                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(pid, 0)
        out.seek(0)
        err.seek(0)
        return {
            "code": os.waitstatus_to_exitcode(status),
            "out": out.read().decode("utf-8", "replace"),
            "err": err.read().decode("utf-8", "replace"),
        }


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(one(json.loads(line))), flush=True)
