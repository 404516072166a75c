-- Precedes every script: a key with the wrong type of data counts as empty and is listed in the reply.
-- See docs/adr/0021-unreadable-records.md.

local unguarded, call = redis, redis.pcall
local MOST_LEFT_OUT = 100 -- per call
local left_out, met = {}, {}

-- Note an unreadable key. The script's caller reports it to operators, because a read-only script cannot.
local function set_aside(key, why)
  if met[key] then return end
  met[key] = true
  if #left_out == MOST_LEFT_OUT then return end
  left_out[#left_out + 1] = {key, string.sub(why, 1, 200)}
end

-- What a command answers for a missing key. The tables are made here, because few scripts need them.
local function answer_of_missing(command, arguments)
  local no_members = {
    HGETALL = true, HKEYS = true, LRANGE = true, SMEMBERS = true, XRANGE = true, XREVRANGE = true, ZPOPMIN = true,
    ZRANGE = true, ZRANGEBYLEX = true, ZRANGEBYSCORE = true, ZREVRANGE = true, ZREVRANGEBYSCORE = true,
  }
  local no_value = {
    GET = true, GETDEL = true, HGET = true, LINDEX = true, LPOP = true, XADD = true, ZRANK = true, ZREVRANK = true,
    ZSCORE = true,
  }
  if no_members[command] then return {} end
  if no_value[command] then return false end
  if command ~= 'HMGET' then return 0 end
  local none = {}
  for i = 1, arguments - 1 do none[i] = false end
  return none
end

local redis = setmetatable({}, {__index = unguarded})

redis.call = function(command, ...)
  local answer = call(command, ...)
  if type(answer) ~= 'table' or not answer.err then return answer end
  local key, field = ...
  if command == 'HINCRBY' and string.find(answer.err, '^ERR') then -- the counter is not a number
    set_aside(key, field .. ' is not a number')
    return 0
  end
  if not string.find(answer.err, '^WRONGTYPE') then return error(answer) end
  set_aside(key, 'it holds another type of data')
  return answer_of_missing(command, select('#', ...))
end
