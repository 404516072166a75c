-- include: records, schedules
-- Delete a schedule, but not its snapshots.
-- ask: {account, id}
-- Answers 1, or 0 if the account has no such schedule.
local ask = cjson.decode(ARGV[1])
local schedule = read('schedule:' .. ask.id)
if not schedule or schedule.account ~= ask.account then return 0 end
forget_schedule(ask.id, schedule)
return 1
