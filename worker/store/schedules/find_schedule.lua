-- include: records, schedules
-- One schedule of an account.
-- ask: {account, id}
-- Answers the schedule (see `show_schedule`); nil where the account has no such schedule.
local ask = cjson.decode(ARGV[1])
local schedule = read_of(ask.account, 'schedule:' .. ask.id)
if not schedule then return nil end
return show_schedule(ask.id)
