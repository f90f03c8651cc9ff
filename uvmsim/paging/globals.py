"""What `uvmsim.paging.bind` puts in place of these names before anything is compiled: whether a
policy has hooks of its own, and the hooks. What stands here is the driver without a program."""

from typing import Any

from uvmsim.policies.pages.base import PagePolicy

HAS_PREFETCH = HAS_ORDER = MIGRATES = RECORDS = False

page_prefetch: Any = PagePolicy.page_prefetch
page_prefetch_iter: Any = PagePolicy.page_prefetch_iter
block_activate: Any = PagePolicy.block_activate
block_access: Any = PagePolicy.block_access
evict_prepare: Any = PagePolicy.evict_prepare
