-- include: clock, records, nodes, enqueue, removal
-- Queue again the deletes that did not free their space. ARGV: node, owner, retry_ms, JSON queue, job id, ...
-- At most as many as there are job ids. A busy server waits for the next time. Answers the ids of the queued jobs.
if not owns_lease(ARGV[1], ARGV[2]) then return {} end
local due, now, queued = 'node:' .. ARGV[1] .. ':deleting', now_ms(), {}
local ids = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, #ARGV - 4)
for i, id in ipairs(ids) do
  local snapshot = read('snapshot:' .. id)
  local server = snapshot and read('server:' .. snapshot.server)
  if not snapshot then
    redis.call('ZREM', due, id)
  elseif not server or server.missing then
    forget_snapshot(id, snapshot)
  elseif not server.job then
    redis.call('ZADD', due, now + ARGV[3], id)
    enqueue(ARGV[4 + i], {
      kind = 'delete', server = snapshot.server, server_name = server.name, account = snapshot.account,
      node = ARGV[1], snapshot = id, snapshot_name = snapshot.name, snapshot_description = snapshot.description,
      snapshot_created_ms = snapshot.created_ms, request_id = '', traceparent = snapshot.traceparent,
    }, cjson.decode(ARGV[4]))
    queued[#queued + 1] = ARGV[4 + i]
  end
end
return queued
