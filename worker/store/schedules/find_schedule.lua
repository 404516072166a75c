-- include: records, schedules
-- One schedule of an account.
-- Only reads.
-- ask: {account, id}
-- Answers the schedule (see `show_schedule`); nil where the account has no such schedule.
local ask = cjson.decode(ARGV[1])
local schedule = read('schedule:' .. ask.id)
if not schedule or schedule.account ~= ask.account then return nil end
return show_schedule(ask.id)
