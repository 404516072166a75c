-- include: queue
-- Choose the jobs of a node's queue that it is to start now. While an operator has paused the node none starts; the
-- operator's resume wakes the node. A job that is over, or not the node's, leaves the queue.
-- ask: {node, free: slots, limit: jobs of the queue to look at, running: ids}
-- Answers {id, ...}, earliest first.
local ask = cjson.decode(ARGV[1])
local answer = {}
local queued = redis.call('ZRANGE', 'arq:queue:' .. ask.node, 0, ask.limit - 1)
if #queued == 0 or redis.call('HEXISTS', 'node:' .. ask.node, 'paused_ms') == 1 then return answer end
local running = {}
for _, id in ipairs(ask.running) do running[id] = true end
for _, id in ipairs(queued) do
  local found = redis.pcall('HMGET', 'job:' .. id, 'node', 'state') -- a record that is no hash holds up no other job
  local node, state = found[1], found[2]
  if not found.err and node ~= ask.node then
    redis.call('ZREM', 'arq:queue:' .. ask.node, id)
  elseif state == 'completed' or state == 'failed' then
    forget_queued(id, {node = node})
  elseif not found.err and not running[id] then
    answer[#answer + 1] = id
    if #answer == ask.free then break end
  end
end
return answer
