"""LFU with dynamic ageing: old popularity fades, so a change of topic is followed."""

from uvmsim.policies.lfu import LFU


class LFUDA(LFU):
    """LFU with dynamic ageing: rank = uses + rank of the last victim."""

    name = "lfuda"
    source = "Arlitt, Cherkasova, Dilley, Friedrich and Jin 2000 (LFU-DA, as in Squid)"

    @staticmethod
    def on_access(s, pool, e, i, hit):
        if hit:
            s.tick[0] += 1
            s.since[e] = s.tick[0]
            s.uses[e] += 1
            s.key[e] = s.uses[e] + s.age[pool.pool_of[e]]

    @staticmethod
    def on_insert(s, pool, e, i):
        s.tick[0] += 1
        s.since[e] = s.tick[0]
        s.uses[e] = 1
        s.key[e] = 1 + s.age[pool.pool_of[e]]

    @staticmethod
    def on_evict(s, pool, e):
        s.age[pool.pool_of[e]] = s.key[e]
