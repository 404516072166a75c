-- include: snapshots, findings
-- The end of a snapshot's record.

local function forget_snapshot(id, snapshot)
  hide_snapshot(id, snapshot)
  local key = 'server:' .. snapshot.server
  -- of a server that is nowhere any more only its snapshots were left to look after
  if redis.call('HEXISTS', key, 'missing') == 1 and redis.call('EXISTS', key .. ':snapshots') == 0 then
    forget_findings(redis.call('HGET', key, 'node'), snapshot.server)
  end
  redis.call('ZREM', 'node:' .. snapshot.node .. ':deleting', id)
  redis.call('DEL', 'snapshot:' .. id)
end
