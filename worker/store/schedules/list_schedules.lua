-- include: records, schedules
-- One page of an account's schedules, newest first: those of one server each, or those by label.
-- Only reads.
-- ask: {account, server, by_label, offset, limit}; server may be missing
-- Answers {total, schedule (see `show_schedule`), ...}.
local ask = cjson.decode(ARGV[1])
local list = 'account:' .. ask.account .. ':schedules'
if ask.by_label then list = list .. ':labels' elseif ask.server then list = list .. ':server:' .. ask.server end
local page = {redis.call('ZCARD', list)}
for _, id in ipairs(redis.call('ZREVRANGE', list, ask.offset, ask.offset + ask.limit - 1)) do
  page[#page + 1] = show_listed(list, 'schedule:', id, ask, show_schedule)
end
return page
