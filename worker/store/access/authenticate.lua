-- include: caller
-- Check a caller's token and count the call.
-- Only reads and notes.
-- ask: {token, address, account, calls, failed_logins, window_ms} (see `count_call`)
-- Answers {{field, value, ...} of the token, why Redis refused to count or '', and if it counted: allowed, left, ms
-- until one more call is allowed}. Without such a token the fields are empty and the numbers are those of failed logins
-- from the address.
local ask = cjson.decode(ARGV[1])
local _, _, answer = count_call(ask)
return answer
