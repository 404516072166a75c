-- include: records, schedules
-- One schedule of an account.
-- Only reads.
-- ask: {id, account}
-- Answers the schedule (see `show_schedule`); nil if the account has none with this ID.
local ask = cjson.decode(ARGV[1])
return read_of(ask.account, 'schedule:' .. ask.id) and show_schedule(ask.id) or nil
