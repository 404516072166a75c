-- include: states
-- Records: hashes of text, and what stands in their fields.

-- The fields without which a script can't go on, and what they hold.
local NEEDED = {
  delivery = {attempts = 'number', created_ms = 'number', event = 'text'},
  job = {
    account = 'id', kind = 'kind', node = 'text', queued_ms = 'number', server = 'id', snapshot = 'id', state = 'state',
  },
  schedule = {account = 'id'},
  server = {account = 'id', name = 'text', node = 'text'},
  snapshot = {
    account = 'id', created_ms = 'number', name = 'text', node = 'text', server = 'id', status = 'text',
  },
  token = {account = 'text', id = 'text'},
  ['token:session'] = {ends_ms = 'number', seen_ms = 'number', token = 'text'},
  ['token:webhook'] = {secret = 'text'},
  webhook = {account = 'id', url = 'text'},
}

-- A number that a record holds, exact as a Lua number; nil for any other text, and for none.
local function number(text)
  local read = text and string.find(text, '^%-?%d+%.?%d*$') and tonumber(text)
  return read and math.abs(read) < 2 ^ 53 and read or nil
end

-- What a JSON text says; nil where it is none.
local function json(text)
  local is_json, said = pcall(cjson.decode, text)
  return is_json and said or nil
end

-- End the script, or what `attempt` guards, because a record can't be read.
local function unreadable(key, why)
  set_aside(key, why)
  return error({err = 'UNREADABLE ' .. key .. ' ' .. why})
end

local function is_a(what, text)
  if what == 'id' then return text and string.find(text, '^%d+$') and number(text) end
  if what == 'number' then return number(text) end
  if what == 'kind' then return STEPS_OF[text or ''] end
  if what == 'state' then return MAY_FOLLOW[text or ''] end
  return text
end

-- A key of that type, or none, is what a script is about to change. Else it ends: a write would be lost.
local function demand(key, kind)
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then return unreadable(key, 'it holds another type of data') end
end

-- {field, value, ...} as a table.
local function named(flat)
  local record = {}
  for i = 1, #flat, 2 do record[flat[i]] = flat[i + 1] end
  return record
end

-- The record that was read from that key. Ends the script if it can't be read.
local function readable(key, record)
  local kind = string.match(key, '^(token:%a+):') or string.match(key, '^%a+')
  for field, what in pairs(NEEDED[kind] or {}) do
    if not is_a(what, record[field]) then return unreadable(key, field .. ' cannot be read') end
  end
  return record
end

-- A hash as a table, and as {field, value, ...}; nil if it does not exist. Ends the script if the record can't be read.
local function read(key)
  local flat = redis.call('HGETALL', key)
  if #flat > 0 then return readable(key, named(flat)), flat end
  demand(key, 'hash')
end

-- The same, if the record is that account's. One whose account can't be read is nobody's.
local function read_of(account, key)
  local flat = redis.call('HGETALL', key)
  local record = named(flat)
  if record.account == account then return readable(key, record), flat end
end

-- After a read of that key: it holds the type of data that was read, or nothing. Else the script ends, because it is
-- about to write there, and a write would be lost.
local function demand_as_read(key)
  if met[key] then return unreadable(key, 'it holds another type of data') end
end

-- What work(...) answers about the record of that key. Where it fails, the record is set aside and the answer is nil:
-- one of many must not keep the others from being listed or worked on.
local function attempt(key, work, ...)
  local done, answer, more = pcall(work, ...)
  if done then return answer, more end
  local why = type(answer) == 'table' and answer.err or string.gsub(tostring(answer), '^user_script:%d+: ', '')
  if type(answer) == 'table' and not string.find(why, '^UNREADABLE') and not string.find(why, '^ERR') then
    return error(answer) -- Redis refuses: it is full, or read-only
  end
  if not string.find(why, '^UNREADABLE') then set_aside(key, why) end -- else whoever noticed it has done so
  return nil
end

-- Where records may be missing or unreadable: nil for both.
local function look_up(key)
  return attempt(key, read, key)
end

-- One that an index lists, as show(id, record, flat) shows it. nil, and the operators are told, if there is none, or if
-- it is of another account or server than the list is asked for: no list shows anybody's data to another. Whether its
-- fields can be read is seen by who reads what is shown.
local function show_listed(index, kind, id, ask, show)
  local key = kind .. id
  local flat = redis.call('HGETALL', key)
  local record = named(flat)
  if record.account == ask.account and (not ask.server or record.server == ask.server) then
    return attempt(key, show, id, record, flat)
  end
  local why = redis.call('EXISTS', kind .. id) == 1 and 'it leads to another account or server' or 'it leads to nothing'
  set_aside(index .. ' ' .. id, why)
  return nil
end

-- The job that holds a server; nil also if the job's record is gone, for nobody is left to let go of the server.
local function holder_of(server)
  return server.job and redis.call('EXISTS', 'job:' .. server.job) == 1 and server.job or nil
end

-- A table as {field, value, ...}.
local function flattened(record)
  local parts, n = {}, 0
  for field, value in pairs(record) do
    parts[n + 1], parts[n + 2], n = field, value, n + 2
  end
  return parts
end

local function write(key, record)
  redis.call('HSET', key, unpack(flattened(record)))
end
