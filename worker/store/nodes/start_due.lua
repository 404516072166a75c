-- include: clock
-- Mark the jobs of a queue that are due as in progress. ARGV: queue, key of the node, slots that are free, jobs to look at,
-- what the marks' names begin with, ms that a mark lives, ids that run already... Answers {ms until the next one is due, or
-- -1, id, score, ...}: those to start, earliest first; none while an operator has paused the node, who ends it with a wake-up.

-- Who looks with arq's tools sees the marks. The journal says what runs: a mark is not worth a write to the disk.
redis.set_repl(redis.REPL_NONE)

local queued = redis.call('ZRANGE', ARGV[1], 0, ARGV[4] - 1, 'WITHSCORES')
local answer, free = {-1}, tonumber(ARGV[3])
if #queued == 0 or redis.call('HEXISTS', ARGV[2], 'paused_ms') == 1 then return answer end
local running = {}
for i = 7, #ARGV do running[ARGV[i]] = true end
for i = 1, #queued, 2 do
  local id, score = queued[i], queued[i + 1]
  if tonumber(score) > now_ms() then
    answer[1] = math.ceil(score - now_ms())
    break
  end
  if free > 0 and not running[id] then
    free = free - 1
    redis.call('SET', ARGV[5] .. id, 1, 'PX', ARGV[6])
    answer[#answer + 1] = id
    answer[#answer + 1] = score
  end
end
return answer
