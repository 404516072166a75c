-- include: records, nodes, show, account_limits
-- One server of an account.
-- Only reads.
-- ask: {id, account, silent_ms}
-- Answers {{field, value, ...}, kind of the job that holds it or '', snapshots that take a slot, 1 if its node responds
-- and has published its snapshots, snapshots that it may have}; nil if the account has none with this ID.
local ask = cjson.decode(ARGV[1])
local record, flat = read_of(ask.account, 'server:' .. ask.id)
if not record or record.missing then return nil end
local server, holding = show_server(ask.id, flat)
return {server, holding, redis.call('SCARD', 'server:' .. ask.id .. ':counted'),
  (node_is_silent(record.node, ask.silent_ms) or record.unpublished) and 0 or 1,
  snapshots_max(record.account)}
