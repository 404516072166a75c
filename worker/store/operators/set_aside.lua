-- Put records that can't be read into the operators' list.
-- Only reads and notes.
-- ask: {records: [[key, why]]}
-- Answers their number.
local ask = cjson.decode(ARGV[1])
for _, record in ipairs(ask.records) do set_aside(record[1], record[2]) end
return #ask.records
