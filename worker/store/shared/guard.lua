-- In front of every script: a key that holds another type of data than it should counts as empty, and operators are
-- told. See docs/adr/0021-unreadable-records.md.

local unguarded = redis
local TOLD_AGAIN_MS, KEPT_MS, MOST_UNREADABLE = 600000, 86400000, 1000
local NO_MEMBERS = {
  HGETALL = true, LRANGE = true, SMEMBERS = true, XRANGE = true, XREVRANGE = true, ZPOPMIN = true, ZRANGE = true,
  ZRANGEBYSCORE = true, ZREVRANGE = true, ZREVRANGEBYSCORE = true,
}
local NO_VALUE = {GET = true, HGET = true, LPOP = true, XADD = true, ZRANK = true, ZREVRANK = true, ZSCORE = true}

-- Put a key that can't be read into the operators' list. Nothing fails if that can't be written: others may still read.
local function set_aside(key, why)
  local time = unguarded.call('TIME') -- Redis's own: the record of the cell's time may be the one that can't be read
  local now, entry = time[1] * 1000 + math.floor(time[2] / 1000), key .. '\n' .. string.sub(why, 1, 200)
  local seen = tonumber(unguarded.pcall('ZSCORE', 'unreadable', entry))
  if seen and math.abs(now - seen) < TOLD_AGAIN_MS then return end
  unguarded.pcall('ZADD', 'unreadable', now, entry)
  unguarded.pcall('ZREMRANGEBYSCORE', 'unreadable', '-inf', now - KEPT_MS)
  unguarded.pcall('ZREMRANGEBYRANK', 'unreadable', 0, -MOST_UNREADABLE - 1)
  unguarded.pcall('PEXPIRE', 'unreadable', KEPT_MS)
end

local redis = setmetatable({}, {__index = unguarded})

redis.call = function(command, ...)
  local answer = unguarded.pcall(command, ...)
  if type(answer) ~= 'table' or not answer.err then return answer end
  local key, field = ...
  if command == 'HINCRBY' and string.find(answer.err, '^ERR') then -- what is counted is no number
    set_aside(key, field .. ' is not a number')
    return 0
  end
  if not string.find(answer.err, '^WRONGTYPE') then return error(answer) end
  set_aside(key, 'it holds another type of data')
  if NO_MEMBERS[command] then return {} end
  if NO_VALUE[command] then return false end
  if command ~= 'HMGET' then return 0 end
  local none = {}
  for i = 1, select('#', ...) - 1 do none[i] = false end
  return none
end
