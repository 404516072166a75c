-- include: notes
-- List the keys that could not be read in the last 24 hours, latest first. Keys that were deleted since are removed
-- from the list.
-- Only reads and notes.
-- ask: {limit}
-- Answers {{key, why, time in ms}, ...}.
local ask = cjson.decode(ARGV[1])
local listed = {}
local found = redis.call('ZREVRANGE', 'unreadable', 0, ask.limit - 1, 'WITHSCORES')
for i = 1, #found, 2 do
  local key, why = string.match(found[i], '^([^\n]*)\n(.*)$')
  if key and redis.call('EXISTS', string.match(key, '^%S+')) == 0 then
    try(redis.call, 'ZREM', 'unreadable', found[i])
  elseif key then
    listed[#listed + 1] = {key, why, found[i + 1]}
  end
end
return listed
