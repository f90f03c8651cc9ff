"""Small request files of every format, written from the descriptions of the formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

AZURE_2023 = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""
AZURE_2024 = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:00.017335+00:00,2399,6
2024-05-10 00:00:01+00:00,76,15
"""
BURSTGPT_1 = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,API log
"""
BURSTGPT_2 = """\
Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5.25,s1,2.5,ChatGPT,472,18,490,Conversation log
45.5,,0.1,GPT-4,10,0,10,API log
118.75,s1,9.9,GPT-4,417,276,693,"API log, new"
"""
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,2048,32\n1.75,16,1\n"
VIDUR_LENGTHS = """\
num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio
2048,32,2080,64.0
16,1,17,16.0
"""
SPLITWISE = (
    "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
    "0,2,0,0.0,1,1500,13\n1,2,0,0.001,1,20,500\n"
)
MOONCAKE = [
    {"timestamp": 27482, "input_length": 1025, "output_length": 52, "hash_ids": [46, 47, 2353]},
    {"timestamp": 30535, "input_length": 512, "output_length": 26, "hash_ids": [46]},
]
BAILIAN = [
    {"chat_id": 159, "parent_chat_id": -1, "timestamp": 61.114, "input_length": 34,
     "output_length": 532, "type": "text", "turn": 1, "hash_ids": [1089, 1090, 1091]},
    {"chat_id": 160, "parent_chat_id": 159, "timestamp": 61.2, "input_length": 16,
     "output_length": 5, "type": "search", "turn": 2, "hash_ids": [1089]},
]  # fmt: skip
LLMSERVINGSIM = [
    {"input_toks": 3, "output_toks": 4, "arrival_time_ns": 1_700_000_000_000_000_001,
     "input_tok_ids": [1, 2, 3], "output_tok_ids": [4, 5, 6, 7]},
    {"input_toks": 100, "output_toks": 1, "arrival_time_ns": 1_700_000_000_000_000_008},
]  # fmt: skip
AGENTIC = [
    {"session_id": "a", "arrival_time_ns": 100, "sub_requests": [
        {"input_toks": 10, "output_toks": 1, "tool_duration_ns": 50},
        {"input_toks": 20, "output_toks": 2, "tool_duration_ns": 7},
        {"input_toks": 30, "output_toks": 3}]},
    {"session_id": "b", "arrival_time_ns": 110, "sub_requests": [
        {"input_toks": 40, "output_toks": 4, "tool_duration_ns": 0}]},
]  # fmt: skip


def talk(*turns: str) -> dict[str, Any]:
    who = ("human", "gpt")
    return {
        "id": "x",
        "conversations": [{"from": who[i % 2], "value": t} for i, t in enumerate(turns)],
    }


SHAREGPT = [talk("p" * 40 * i, "a" * 20 * i) for i in range(1, 30)] + [talk("alone"), {"id": "y"}]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


GOOD: dict[str, str] = {
    "azure-2023": AZURE_2023,
    "azure-2024": AZURE_2024,
    "burstgpt-1": BURSTGPT_1,
    "burstgpt-2": BURSTGPT_2,
    "vidur": VIDUR,
    "vidur-lengths": VIDUR_LENGTHS,
    "splitwise": SPLITWISE,
    "mooncake": lines(MOONCAKE),
    "bailian": lines(BAILIAN),
    "llmservingsim": lines(LLMSERVINGSIM),
    "llmservingsim-agentic": lines(AGENTIC),
    "sharegpt": json.dumps(SHAREGPT),
}
"""By the format's name, up to what stands behind it for two of one format."""


def writer(folder: Path) -> Callable[[str | bytes], Path]:
    """A function that writes a file of requests there."""

    def write(text: str | bytes, name: str = "requests") -> Path:
        path = folder / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write
