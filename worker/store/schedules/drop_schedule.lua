-- include: records, schedules
-- Forget a schedule; the snapshots that it made stay. ARGV: account, id. Answers 1, or 0 where there is none.
local schedule = read('schedule:' .. ARGV[2])
if not schedule or schedule.account ~= ARGV[1] then return 0 end
forget_schedule(ARGV[2], schedule)
return 1
