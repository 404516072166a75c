-- include: records, schedules
-- One schedule of an account, as it is shown. ARGV: id, account. Answers nil where there is none, also for another account's.
local schedule = read('schedule:' .. ARGV[1])
if not schedule or schedule.account ~= ARGV[2] then return nil end
return show_schedule(ARGV[1])
