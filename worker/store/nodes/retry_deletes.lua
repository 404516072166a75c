-- include: clock, records, nodes, shown, enqueue, removal
-- Queue a node's deletes that have not freed their space again, at most one for each of job_ids. A delete whose server
-- has a job stays due.
-- Also when full.
-- ask: {node, owner, retry_ms, job_ids}
-- Answers the IDs of the queued jobs.
local ask = cjson.decode(ARGV[1])
if not owns_lease(ask.node, ask.owner) then return {} end
local due, now, queued = 'node:' .. ask.node .. ':deleting', now_ms(), {}
local ids = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, #ask.job_ids)

local function retry(i, id)
  local snapshot = read('snapshot:' .. id)
  local server = snapshot and read('server:' .. snapshot.server)
  if not snapshot or snapshot.status ~= 'deleting' then
    redis.call('ZREM', due, id)
  elseif server and server.node ~= ask.node then -- it was not moved with its server, or has just been
    redis.call('ZREM', due, id)
    redis.call('HSET', 'snapshot:' .. id, 'node', server.node)
    redis.call('ZADD', 'node:' .. server.node .. ':deleting', 'NX', now, id)
  elseif not server or server.missing then
    forget_snapshot(id, snapshot)
  elseif holder_of(server) then
    redis.call('ZADD', due, now, id)
  else
    local shown = snapshot_for_job(snapshot)
    enqueue(ask.job_ids[i], {
      kind = 'delete', server = snapshot.server, server_name = text_for_job(server.name), account = snapshot.account,
      node = ask.node, snapshot = id, snapshot_name = shown.name, snapshot_description = shown.description,
      snapshot_created_ms = shown.created_ms, request_id = '', traceparent = snapshot.traceparent,
    })
    queued[#queued + 1] = ask.job_ids[i]
  end
end

for i, id in ipairs(ids) do
  redis.call('ZADD', due, now + ask.retry_ms, id) -- set first, so that an unreadable snapshot does not block the others
  attempt('snapshot:' .. id, retry, i, id)
end
return queued
