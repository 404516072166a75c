-- include: records, nodes, show
-- One snapshot, job or server of an account, as it is shown. ARGV: 'snapshot', 'job' or 'server', id, account, silent_ms.
-- Answers nil where there is none, also for another account's; of a server {{field, value, ...}, kind of the job that
-- holds it or '', snapshots that take a slot, 1 if its node answers and has said what it holds}.
local record = read(ARGV[1] .. ':' .. ARGV[2])
if not record or record.account ~= ARGV[3] or record.status == 'deleting' or record.missing then return nil end
if ARGV[1] == 'snapshot' then return show_snapshot(ARGV[2]) end
if ARGV[1] == 'job' then return show_job(ARGV[2]) end
local server, holding = show_server(ARGV[2])
return {server, holding, redis.call('SCARD', 'server:' .. ARGV[2] .. ':counted'),
  (node_is_silent(record.node, ARGV[4]) or record.unpublished) and 0 or 1}
