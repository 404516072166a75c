-- include: records, show
-- One snapshot of an account.
-- Only reads.
-- ask: {id, account}
-- Answers the snapshot (see `show_snapshot`); nil if the account has none with this ID.
local ask = cjson.decode(ARGV[1])
local snapshot, flat = read_of(ask.account, 'snapshot:' .. ask.id)
if not snapshot or snapshot.status == 'deleting' then return nil end
return show_snapshot(ask.id, snapshot, flat)
