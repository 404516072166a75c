-- include: clock
-- Choose the due jobs of a node's queue that are to start now, and mark them as in progress. While an operator has
-- paused the node none starts; the operator's resume wakes the node.
-- ask: {queue, node, free: slots, limit: jobs of the queue to look at, mark: prefix of the marks' keys, mark_ms,
-- running: ids}
-- Answers {ms until the next job is due, or -1, id, score, ...}: the jobs to start, earliest first.
local ask = cjson.decode(ARGV[1])

-- The marks are for people with arq's tools; the journal says what runs. They are not worth a write to the disk.
local now = now_ms()
redis.set_repl(redis.REPL_NONE)

local queued = redis.call('ZRANGE', ask.queue, 0, ask.limit - 1, 'WITHSCORES')
local answer, free = {-1}, ask.free
if #queued == 0 or redis.call('HEXISTS', 'node:' .. ask.node, 'paused_ms') == 1 then return answer end
local running = {}
for _, id in ipairs(ask.running) do running[id] = true end
for i = 1, #queued, 2 do
  local id, score = queued[i], queued[i + 1]
  if tonumber(score) > now then
    answer[1] = math.ceil(score - now)
    break
  end
  if free > 0 and not running[id] then
    free = free - 1
    redis.call('SET', ask.mark .. id, 1, 'PX', ask.mark_ms)
    answer[#answer + 1] = id
    answer[#answer + 1] = score
  end
end
return answer
