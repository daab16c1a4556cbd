"""Token ids of every family, kept: an upgrade that changes them fails here, and says whether transformers or we did.

After a change that is meant: ``python -m tests.golden.test_token_ids`` writes them anew. (The tiny tokenizers are
files, so training libraries have no part in it.)
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import families
from tests.builders import entail
from worker.inference.loading import load
from worker.inference.tokens import Tokens

FILE = Path(__file__).with_name("token_ids.json")
PAIRS = (
    ("The parcel arrived two days late.", "This example is about delivery."),
    ("Das Paket kam zu spät an – schade!", "In diesem Beispiel geht es um Lieferung."),
    ("L'hôtel n'était pas très propre, mais bon.", "Cet exemple parle d'hôtels."),
    ("Посылка пришла на два дня позже.", "Это пример о доставке."),
    ("وصل الطرد متأخرا يومين.", "هذا المثال عن التوصيل."),
    ("पार्सल दो दिन देर से पहुँचा।", "यह उदाहरण वितरण के बारे में है।"),
    ("包裹晚到了两天，盒子也坏了。", "这个例子是关于送货的。"),
    ("พัสดุมาถึงช้าไปสองวัน", "ตัวอย่างนี้เกี่ยวกับการจัดส่ง"),
    ("소포가 이틀 늦게 도착했습니다.", "이 예는 배송에 관한 것입니다."),
    ("Great 😀👍🏽 — 5/5 ★★★★★ https://example.com/?q=a&b", "#help @me"),
    ("  two  blanks\tand a tab\nand ２ ﬁ e\u0301 \u200b ", "İstanbul ß"),
    ("A text that writes </s> and [SEP] and <mask>", "<s> [CLS]"),
    ("", "Nothing before."),
)
SPECIAL = "A text that writes"  # here ours differ on purpose, as worker.inference.tokens says


def compute(family: str) -> list[list[int]]:
    checkpoint = load(
        str(families.checkpoint(family)), device="cpu", precision="fp32", self_test="off", default_language="en"
    )
    tokens = Tokens(checkpoint)
    return [tokens.encode(entail(premise, hypothesis)).rows[0].token_ids.tolist() for premise, hypothesis in PAIRS]


def kept() -> dict[str, list[list[int]]]:
    golden: dict[str, list[list[int]]] = json.loads(FILE.read_text(encoding="utf-8"))
    return golden


@pytest.mark.parametrize("family", families.EVERY)
def test_our_ids_are_those_kept(family: str) -> None:
    assert dict(zip(PAIRS, compute(family), strict=True)) == dict(zip(PAIRS, kept()[family], strict=True))


@pytest.mark.parametrize("family", families.EVERY)
def test_transformers_ids_are_those_kept(family: str) -> None:
    tokenizer = families.tokenizer(family)
    for (premise, hypothesis), ids in zip(PAIRS, kept()[family], strict=True):
        if not premise.startswith(SPECIAL):
            assert tokenizer([premise], [hypothesis])["input_ids"][0] == ids


if __name__ == "__main__":
    ROWS = ",\n".join(
        f'"{family}": [\n' + ",\n".join(json.dumps(ids) for ids in compute(family)) + "\n]"
        for family in families.FAMILIES
    )
    FILE.write_text(f"{{\n{ROWS}\n}}\n", encoding="utf-8")
