-- include: show
-- One page of a customer's jobs, newest first. ARGV: account, server id or '', state or '', offset, limit.
-- Answers {total, job, ...}, as they are shown.
local GONE_AT_ONCE = 500 -- a bound on how long one call holds Redis
local list = 'account:' .. ARGV[1] .. ':jobs'
if ARGV[2] ~= '' then list = list .. ':server:' .. ARGV[2] end
if ARGV[3] ~= '' then list = list .. ':' .. ARGV[3] end
-- The record of a job goes by itself, 30 days after its end; its place in the list goes when it is looked at.
for _, id in ipairs(redis.call('ZRANGE', list, 0, GONE_AT_ONCE - 1)) do
  if redis.call('EXISTS', 'job:' .. id) == 1 then break end
  redis.call('ZREM', list, id)
end
local page = {redis.call('ZCARD', list)}
for _, id in ipairs(redis.call('ZREVRANGE', list, ARGV[4], ARGV[4] + ARGV[5] - 1)) do
  if redis.call('EXISTS', 'job:' .. id) == 1 then page[#page + 1] = show_job(id) end
end
return page
