-- include: snapshots, findings, history
-- Deletes the record of a snapshot.

local function forget_snapshot(id, snapshot)
  hide_snapshot(id, snapshot)
  local key = 'server:' .. snapshot.server
  -- a missing server is a finding only while it has snapshots
  if redis.call('HEXISTS', key, 'missing') == 1 and redis.call('EXISTS', key .. ':snapshots') == 0 then
    forget_findings(redis.call('HGET', key, 'node') or snapshot.node, snapshot.server)
  end
  redis.call('ZREM', 'node:' .. snapshot.node .. ':deleting', id)
  close_history(id, snapshot)
  redis.call('DEL', 'snapshot:' .. id)
end
