-- include: records, nodes, show, schedules, account_limits
-- One snapshot, job, schedule, webhook or server of an account.
-- Only reads.
-- ask: {what: 'snapshot', 'job', 'schedule', 'webhook' or 'server', id, account, silent_ms (of a server)}
-- Answers the record as `show_snapshot`, `show_job`, ... returns it; for a server {{field, value, ...}, kind of the job
-- that holds it or '', snapshots that take a slot, 1 if its node responds and has published its snapshots,
-- snapshots that it may have}. nil if the
-- account has no such record.
local ask = cjson.decode(ARGV[1])
local record, flat = read_of(ask.account, ask.what .. ':' .. ask.id)
if not record or record.status == 'deleting' or record.missing then return nil end
if ask.what == 'snapshot' then return show_snapshot(ask.id, record, flat) end
if ask.what == 'job' then return show_job(ask.id, record, flat) end
if ask.what == 'schedule' then return show_schedule(ask.id) end
if ask.what == 'webhook' then return show_webhook(ask.id) end
local server, holding = show_server(ask.id, flat)
return {server, holding, redis.call('SCARD', 'server:' .. ask.id .. ':counted'),
  (node_is_silent(record.node, ask.silent_ms) or record.unpublished) and 0 or 1,
  snapshots_max(record.account)}
