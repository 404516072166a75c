-- include: refusals, states
-- Records: hashes of text, and the formats of their fields.

-- The required fields of a record, and their formats. A function, so that a run makes only the tables that it needs.
local function needed_fields(kind)
  if kind == 'job' then
    return {
      account = 'id', kind = 'kind', node = 'text', queued_ms = 'number', server = 'id', snapshot = 'id',
      state = 'state',
    }
  end
  if kind == 'snapshot' then
    return {account = 'id', created_ms = 'number', name = 'text', node = 'text', server = 'id', status = 'text'}
  end
  if kind == 'server' then return {account = 'id', name = 'text', node = 'text'} end
  if kind == 'token' then return {account = 'text', id = 'text'} end
  if kind == 'token:session' then return {ends_ms = 'number', seen_ms = 'number', token = 'text'} end
  if kind == 'token:webhook' then return {secret = 'text'} end
  if kind == 'delivery' then return {attempts = 'number', created_ms = 'number', event = 'text'} end
  if kind == 'schedule' then return {account = 'id'} end
  if kind == 'webhook' then return {account = 'id', url = 'text'} end
  return {}
end

-- The number in a record, if a Lua number represents it exactly; nil for any other text and for a missing field.
local function number(text)
  local read = text and string.find(text, '^%-?%d+%.?%d*$') and tonumber(text)
  return read and math.abs(read) < 2 ^ 53 and read or nil
end

-- The parsed JSON text; nil if it is invalid.
local function json(text)
  local is_json, said = pcall(cjson.decode, text)
  return is_json and said or nil
end

-- End the script, or the work within `attempt`, because a record is unreadable.
local function unreadable(key, why)
  set_aside(key, why)
  return error({err = 'UNREADABLE ' .. key .. ' ' .. why})
end

local function is_a(what, text)
  if what == 'id' then return text and string.find(text, '^%d+$') and number(text) end
  if what == 'number' then return number(text) end
  if what == 'kind' then return KINDS[text or ''] end
  if what == 'state' then return MAY_FOLLOW[text or ''] end
  return text
end

-- End the script unless the key has that type or does not exist, because a write would be lost.
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

-- Whether a newer release wrote the record, and an older one must not guess what it means. The version of a server only
-- says in which lists it is.
local function is_newer(kind, record)
  return kind ~= 'server' and (tonumber(record.v) or 1) > 1
end

-- Check the record that was read from that key. Ends the script if it is unreadable.
local function readable(key, record)
  local kind = string.match(key, '^(token:%a+):') or string.match(key, '^%a+')
  if is_newer(kind, record) then return unreadable(key, 'a newer release wrote it: version ' .. record.v) end
  for field, what in pairs(needed_fields(kind)) do
    if not is_a(what, record[field]) then return unreadable(key, field .. ' cannot be read') end
  end
  return record
end

-- After a read of that key: end the script unless the key has the type of data that was read or does not exist,
-- because a write to it would be lost.
local function demand_as_read(key)
  if met[key] then return unreadable(key, 'it holds another type of data') end
end

-- A hash as a table, and as {field, value, ...}; nil if it does not exist. Ends the script if the record is unreadable.
local function read(key)
  local flat = redis.call('HGETALL', key)
  if #flat > 0 then return readable(key, named(flat)), flat end
  demand_as_read(key)
end

-- The same, if the record belongs to that account. A record with an unreadable account belongs to nobody.
local function read_of(account, key)
  local flat = redis.call('HGETALL', key)
  local record = named(flat)
  if record.account == account then return readable(key, record), flat end
end

-- The result of work(...) for the record of that key. If it fails, the record is noted as unreadable and the result
-- is nil, so that one record does not block the others.
local function attempt(key, work, ...)
  local done, answer, more = pcall(work, ...)
  if done then return answer, more end
  if why_refused(answer) then return error({err = text_of(answer)}) end
  local why = string.gsub(text_of(answer), '^user_script:%d+: ', '')
  if not string.find(why, '^UNREADABLE') then set_aside(key, why) end -- otherwise it is already noted
  return nil
end

-- Like `read`, but nil for a missing or unreadable record.
local function look_up(key)
  return attempt(key, read, key)
end

-- An item of an index, in the form that show(id, record, flat) returns. Returns nil and reports it to operators if it
-- does not exist or belongs to another account or server than requested, so that no list shows another account's data.
-- The caller that parses the result checks its fields.
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

-- The job that holds a server; nil also if the job's record is gone, because nobody would release the server.
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
