"""git worktrees, from the base branch to the next agent: the parts of one adapter.

`upstream` says where a dispatch begins, and `proposing` how its branch and its folder are called.
`dispatches` is the port itself: it has git make the worktree, and `checkouts` sees that it is
whole; or it takes one of those that `prepared` has made ahead of time, which `handover` puts into
the dispatch's hands. When the dispatch is done, `losses` says what would be lost with it. Nothing:
then it goes to the trash, in `rooms`. Something: `salvage` makes a snapshot, `kept` leaves the
folder for some days, and `salvaged` finds and brings back what is in the snapshots.

One that was prepared has a seal (`seals`). What differs from that is its last agent's (`traces`):
compared with what commits hold (`holdings`) it is proof that nothing is lost, and then the list by
which `restoring` makes it like new, for the next one. What git itself has on record of worktrees is
read in `registrations`.
"""
