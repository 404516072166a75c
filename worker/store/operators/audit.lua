-- include: records, walk
-- List a page of the audit log, newest first.
-- Only reads.
-- ask: {match: {field: value}, about: {snapshot, server, node}: IDs that the entry must name; what: 'changes' or
-- 'logins', nil: both; list: key of a list that has all entries that match, or nil; from, to: IDs of the stream, limit}
-- Answers {ID of the last entry, or '' on the last page, {ID, {field, value, ...}, note codes of its job or ''}, ...}.
-- The codes are read here, because a job may end after its entry is written.
local ask = cjson.decode(ARGV[1])
local LISTED = 2000 -- entries per list: see access/keep_audit
local looked, page, to = 0, {''}, ask.to

local function noted(entry)
  local job_id = string.match(entry.made or '', '^job (%x+)$') or entry.job
  return job_id and redis.call('GET', 'job:' .. job_id .. ':noted') or ''
end

local function names(entry, kind, id)
  return entry[kind] == id or entry.made == kind .. ' ' .. id
    or string.find(entry.path or '', '/' .. kind .. 's/' .. id .. '/', 1, true) ~= nil
end

local function is_login(entry)
  return entry.path == '/ops/login/' or entry.path == '/ops/logout/'
end

local function matches(entry)
  if ask.what and is_login(entry) ~= (ask.what == 'logins') then return false end
  for field, value in pairs(ask.match) do
    if entry[field] ~= value then return false end
  end
  for kind, id in pairs(ask.about) do
    if not names(entry, kind, id) then return false end
  end
  return true
end

-- Add it to the page if it matches. Returns whether the page is full.
local function look_at(id, flat)
  looked, to, page[1] = looked + 1, '(' .. id, id
  local fields = named(flat)
  if matches(fields) then page[#page + 1] = {id, flat, noted(fields)} end
  return #page > ask.limit
end

local function order_of(id)
  local ms, seq = string.match(id, '^%(?(%d+)%-?(%d*)$')
  return tonumber(ms), tonumber(seq) or 0
end

local function is_older(id, than)
  local ms, seq = order_of(id)
  local than_ms, than_seq = order_of(than)
  return ms < than_ms or ms == than_ms and seq < than_seq
end

-- The ID from which on the list has all matching entries: the first ID of a millisecond, because within a
-- millisecond the orders differ. nil: there is none.
local function listed_from()
  local from = ask.list and redis.call('HGET', 'audit:head', 'listed_from')
  if not from or not order_of(from) then return nil end
  local oldest = redis.call('ZCARD', ask.list) >= LISTED and redis.call('ZRANGE', ask.list, 0, 0)[1]
  local first_ms = order_of(oldest and is_older(from, oldest) and oldest or from)
  return string.format('%.0f-0', first_ms + 1)
end

local function first_listed()
  if to == '+' then return 0 end
  local rank = redis.call('ZREVRANK', ask.list, string.sub(to, 2))
  return rank and rank + 1 or redis.call('ZCOUNT', ask.list, '(' .. order_of(to), '+inf')
end

-- Read the entries of the list. Returns whether the page is complete.
local function look_at_listed(oldest)
  local rank = first_listed()
  for _, id in ipairs(redis.call('ZREVRANGE', ask.list, rank, rank + LOOKS - 1)) do
    if is_older(id, oldest) then break end
    if ask.from ~= '-' and is_older(id, ask.from) then
      page[1] = ''
      return true
    end
    local entry = redis.call('XRANGE', 'audit', id, id, 'COUNT', 1)[1]
    if entry and look_at(id, entry[2]) then return true end
  end
  to, page[1] = '(' .. oldest, oldest
  return false
end

-- If a Redis account of an earlier version may not read the lists, the log is searched instead.
local may_read, oldest = pcall(listed_from)
if may_read and oldest and (to == '+' or is_older(oldest, to)) and look_at_listed(oldest) then return page end
while looked < LOOKS do
  local found = redis.call('XREVRANGE', 'audit', to, ask.from, 'COUNT', 500)
  for _, entry in ipairs(found) do
    if look_at(entry[1], entry[2]) then return page end
  end
  if #found < 500 then
    page[1] = ''
    return page
  end
end
return page
