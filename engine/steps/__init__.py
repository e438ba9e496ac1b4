"""Every way to compute an update's gradient: whole, streamed, over ranks, ZeRO, and the fallback on OOM."""
