-- include: clock, records
-- Open an operator's session.
-- ask: {key, record: {field: text}, at_most_ms}
-- Answers 1 always.
local ask = cjson.decode(ARGV[1])
ask.record.seen_ms, ask.record.ends_ms = now_text(), tostring(now_ms() + ask.at_most_ms)
write(ask.key, ask.record)
-- only a safety net: sessions end by the time of the cell, and this by Redis's clock
return redis.call('PEXPIRE', ask.key, 2 * ask.at_most_ms)
