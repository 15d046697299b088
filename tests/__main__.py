"""`./dev test [fast|all|STAGE...]`: runs the stages and says how they went.

Exit code 1 when a stage failed, 2 for a stage that does not exist, 130 after Ctrl-C.
"""

from __future__ import annotations

import sys

from tests.stages import choose, report, run_stage


def main() -> int:
    try:
        stages = choose(sys.argv[1:])
    except ValueError as error:
        print(f"tests: {error}", file=sys.stderr)
        return 2
    try:
        results = [run_stage(stage) for stage in stages]
    except KeyboardInterrupt:
        print("tests: interrupted", file=sys.stderr)
        return 130
    print(report(results))
    return 1 if any(result.state == "failed" for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
