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
  local key = 'job:' .. id
  local node, state = unpack(redis.call('HMGET', key, 'node', 'state'))
  if not node and redis.call('EXISTS', key) == 1 then
    set_aside(key, 'node cannot be read') -- it holds up no other job, and runs when it is repaired
  elseif node ~= ask.node then
    redis.call('ZREM', 'arq:queue:' .. ask.node, id)
  elseif state == 'completed' or state == 'failed' then
    forget_queued(id, {node = node})
  elseif not running[id] then
    answer[#answer + 1] = id
    if #answer == ask.free then break end
  end
end
return answer
