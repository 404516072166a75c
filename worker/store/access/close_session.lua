-- Close an operator's session.
-- Also when full.
-- ask: {key}
-- Answers 1, or 0 where there is no such session.
local ask = cjson.decode(ARGV[1])
return redis.call('DEL', ask.key)
