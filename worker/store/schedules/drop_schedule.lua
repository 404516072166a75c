-- include: schedules
-- Delete a schedule, but not its snapshots.
-- ask: {account, id}
-- Answers 1, or 0 if the account has no such schedule.
local ask = cjson.decode(ARGV[1])
local account, server = unpack(redis.call('HMGET', 'schedule:' .. ask.id, 'account', 'server'))
if account ~= ask.account then return 0 end
forget_schedule(ask.id, {account = account, server = server})
return 1
