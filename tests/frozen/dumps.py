"""Small routing and fault dumps for `uvmsim trace import`, the same bytes of data every time."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

TOKENS, LAYERS, EXPERTS, K = 40, 3, 16, 4

CHUNK = """\
time_ms,hook_type,pid,owner_pid,va_space,cpu,chunk_addr,list_addr,va_block,va_start,va_end,va_page_index
0,ACTIVATE,158056,158040,0xffffcf69ca739008,18,0xffffcf69cb566d38,0xffff8d571e68da58,0xffff8d5ecee8e7c8,0x733f13800000,0x733f139fffff,0
1,POPULATE,158056,158040,0xffffcf69ca739008,18,0xffffcf69cb566d38,0xffff8d571e68da58,0xffff8d5ecee8e7c8,0x733f13800000,0x733f139fffff,16
3,EVICTION_PREPARE,158056,,,18,0xffff8d571e68da58,0xffff8d571e68da68,,,,
4,ACTIVATE,158056,158040,0xffffcf69ca739008,2,0xffffcf69cb566d38,0xffff8d571e68da58,0xffff8d5ecee8e7d8,0x733f13a00000,0x733f13bfffff,0
4,POPULATE,158056,158040,0xffffcf69ca739008,2,0xffffcf69cb566d38,0xffff8d571e68da58,0xffff8d5ecee8e7d8,0x733f13a00000,0x733f13bfffff,511
"""
PREFETCH = """\
time_ms,cpu,fault_pid,owner_tgid,va_start,va_end,page_index,faulted_first,faulted_outer,max_first,max_outer,tree_offset,leaf_count,level_count,pages_accessed
0,18,1,2,0x733f13800000,0x733f139fffff,3,3,9,0,512,0,512,10,16
2,18,1,2,0x733f13800000,0x733f139fffff,8,3,9,0,512,0,512,10,32
5,18,1,2,0x733f13a00000,0x733f13bfffff,100,96,112,0,512,0,512,10,16
"""
PID = (1 << 56) | (4321 << 24)
NSYS = (
    "CREATE TABLE CUDA_UM_GPU_PAGE_FAULT_EVENTS (start INTEGER, end INTEGER, globalPid INTEGER, "
    "deviceId INTEGER, address INTEGER, numberOfPageFaults INTEGER, faultAccessType INTEGER)",
    f"INSERT INTO CUDA_UM_GPU_PAGE_FAULT_EVENTS VALUES (100, 150, {PID}, 1, 139637976727552, 7, 2), "
    f"(50, 60, {PID}, 0, 4096, 1, 1)",
    "CREATE TABLE CUDA_UM_CPU_PAGE_FAULT_EVENTS (start INTEGER, globalPid INTEGER, "
    "address INTEGER, originalFaultPC INTEGER)",
    f"INSERT INTO CUDA_UM_CPU_PAGE_FAULT_EVENTS VALUES (70, {PID}, 8192, 12)",
    "CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (start INTEGER, end INTEGER, deviceId INTEGER, "
    "globalPid INTEGER, bytes INTEGER, copyKind INTEGER, migrationCause INTEGER, "
    "virtualAddress INTEGER)",
    f"INSERT INTO CUPTI_ACTIVITY_KIND_MEMCPY VALUES (80, 90, 0, {PID}, 65536, 11, 3, 65536), "
    f"(81, 85, 0, {PID}, 512, 1, NULL, NULL), (95, 99, 0, {PID}, 2097152, 12, 4, 2097152)",
)


def write(folder: Path) -> None:
    """All dumps into ``folder``."""
    ids, weights = routing()
    seq = np.repeat([0, 1], [15, 25])
    pos = np.concatenate([np.arange(15), np.arange(25)])
    np.savez(folder / "plain.npz", expert_ids=ids)
    np.savez(
        folder / "full.npz", expert_ids=ids, probs=weights, token_pos=pos, seq_offsets=[0, 15, 40]
    )
    jsonl(folder / "lines.jsonl", ids, weights, seq, pos)
    wide, long = tables(ids, weights, seq, pos)
    pacsv.write_csv(wide, folder / "wide.csv")
    pq.write_table(wide, folder / "wide.parquet")
    pacsv.write_csv(long, folder / "long.csv")
    pq.write_table(long, folder / "long.parquet")
    (folder / "chunk.csv").write_text(CHUNK)
    (folder / "prefetch.csv").write_text(PREFETCH)
    np.save(folder / "classes.npy", (np.arange(4096) % 4).astype(np.uint8))
    report = sqlite3.connect(folder / "report.sqlite")
    for statement in NSYS:
        report.execute(statement)
    report.commit()
    report.close()


def routing() -> tuple[np.ndarray, np.ndarray]:
    """Ids [tokens, layers, k] and falling weights; of small integers, so no library's random numbers
    or rounding can change them."""
    token, layer, rank = np.ogrid[:TOKENS, :LAYERS, :K]
    ids = (token * token // 5 + layer * 7 + rank * (3 + 2 * (token % 3))) % EXPERTS
    weights = np.broadcast_to((8 - rank) / 32 + (token % 4) / 64, ids.shape)
    return ids.astype(np.int64), weights.astype(np.float32)


def jsonl(path: Path, ids: np.ndarray, weights: np.ndarray, seq: np.ndarray, pos: np.ndarray):
    """The first tokens of each sequence are its prefill; one layer of one token was not seen."""
    lines = []
    for t in range(TOKENS):
        line = {
            "seq": int(seq[t]),
            "pos": int(pos[t]),
            "phase": "prefill" if pos[t] < 5 else "decode",
        }
        line |= {"layers": ids[t].tolist(), "weights": weights[t].tolist()}
        if t == 7:
            line["layers"][1] = line["weights"][1] = None
        lines.append(line)
    lines.append({"seq": 1, "phase": "prefill_union", "layers": ids[0].tolist()})
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))


def tables(
    ids: np.ndarray, weights: np.ndarray, seq: np.ndarray, pos: np.ndarray
) -> tuple[pa.Table, pa.Table]:
    """One row a token and layer, and one row a chosen expert."""
    of_row = np.repeat(np.arange(TOKENS), LAYERS)
    wide = {"seq": seq[of_row], "pos": pos[of_row], "layer": np.tile(np.arange(LAYERS), TOKENS)}
    wide |= {f"e{j}": ids[:, :, j].reshape(-1) for j in range(K)}
    wide |= {f"w{j}": weights[:, :, j].reshape(-1) for j in range(K)}
    of_expert = np.repeat(np.arange(TOKENS), LAYERS * K)
    long = {
        "token": of_expert,
        "layer": np.tile(np.repeat(np.arange(LAYERS), K), TOKENS),
        "expert": ids.reshape(-1),
        "rank": np.tile(np.arange(K), TOKENS * LAYERS),
    }
    return pa.table(wide), pa.table(long)
