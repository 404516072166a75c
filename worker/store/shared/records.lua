-- Records: hashes of text.

-- {field, value, ...} as a table.
local function named(flat)
  local record = {}
  for i = 1, #flat, 2 do record[flat[i]] = flat[i + 1] end
  return record
end

-- A hash as a table; nil if it does not exist.
local function read(key)
  local flat = redis.call('HGETALL', key)
  return #flat > 0 and named(flat) or nil
end

local function write(key, record)
  local flat = {}
  for field, value in pairs(record) do
    flat[#flat + 1] = field
    flat[#flat + 1] = value
  end
  redis.call('HSET', key, unpack(flat))
end
