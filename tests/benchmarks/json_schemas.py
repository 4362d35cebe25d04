"""Schemas of the JSON-Schema-Test-Suite as constraints: `python tests/benchmarks/json_schemas.py FOLDER`.

FOLDER is `json/tests/draft2020-12` of the suite, which jsonschema's source package holds. Every schema is asked for, of
SmolLM2 at temperature 1: how many are accepted; why the others are not; and whether every output that is complete is of
its schema, by jsonschema.
"""

import argparse
import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jsonschema
from support.service import serve

from pagewire.client import Client, InvalidRequest


def schemas(folder: Path) -> list[tuple[str, object]]:
    """Of files beside each other and in optional/; what each is about, and the schema."""
    return [
        (f"{file.relative_to(folder)}: {group['description']}", group["schema"])
        for file in sorted(folder.rglob("*.json"))
        for group in json.loads(file.read_text())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=200, help="of each output, at most")
    parser.add_argument("--outputs", type=int, default=2, help="of each schema")
    args = parser.parse_args()
    refused: list[tuple[str, str]] = []
    complete, wrong = 0, list[str]()
    with (
        serve(model="smollm2-135m", device="cpu", max_num_seqs=32, max_model_len=512) as service,
        Client(service.address) as client,
    ):

        def ask(case: tuple[str, object]) -> object:
            what, schema = case
            try:
                return (
                    what,
                    schema,
                    client.generate(
                        "JSON: ",
                        json_schema=json.dumps(schema),
                        temperature=1,
                        seed=len(what),
                        n=args.outputs,
                        max_tokens=args.tokens,
                    ),
                )
            except InvalidRequest as error:
                return what, schema, error

        cases = schemas(args.folder)
        with ThreadPoolExecutor(8) as pool:
            for what, schema, answer in pool.map(ask, cases):  # type: ignore[misc]
                if isinstance(answer, InvalidRequest):
                    refused.append((what, str(answer)))
                    continue
                for output in answer.outputs:
                    if output.finish_reason != "eos":
                        continue
                    complete += 1
                    problem = problem_of(output.text, schema)
                    if problem:
                        wrong.append(f"{what}: {json.dumps(schema)[:200]} gave {output.text[:200]!r}: {problem}")
    print(f"{len(cases)} schemas, {len(cases) - len(refused)} accepted ({1 - len(refused) / len(cases):.1%})")
    print(f"{complete} complete outputs, {len(wrong)} not of their schema")
    for line in wrong:
        print(f"  {line}")
    for reason, count in Counter(reason[:100] for _, reason in refused).most_common():
        print(f"  {count:4} refused: {reason}")


def problem_of(text: str, schema: object) -> str | None:
    # Decimals, because 4.0257 is a multiple of 0.0001 and their doubles are not.
    try:
        value = json.loads(text, parse_float=Decimal)
    except ValueError as error:
        return f"no JSON: {error}"
    exact = json.loads(json.dumps(schema), parse_float=Decimal)
    try:
        jsonschema.Draft202012Validator(exact).validate(value)
    except jsonschema.ValidationError as error:
        return error.message[:200]
    except Exception as error:  # a reference that leads nowhere here
        return f"cannot be judged: {error!r}"
    return None


if __name__ == "__main__":
    main()
