-- include: schedules
-- One page of a customer's schedules, newest first. ARGV: account, server id or '', offset, limit.
-- Answers {total, schedule, ...}, as they are shown.
local list = 'account:' .. ARGV[1] .. ':schedules'
if ARGV[2] ~= '' then list = list .. ':server:' .. ARGV[2] end
local page = {redis.call('ZCARD', list)}
for _, id in ipairs(redis.call('ZREVRANGE', list, ARGV[3], ARGV[3] + ARGV[4] - 1)) do page[#page + 1] = show_schedule(id) end
return page
