-- include: records, walk
-- Find objects by ID or name.
-- Only reads.
-- ask: {text, limit: results of each kind, requests, uses: keys of the audit log's lists of a request and of a token
-- with that ID}
-- Answers {{kind, ID, name, account, ID of the server, state, '1' for an exact match}, ...}; texts may be ''.
local ask = cjson.decode(ARGV[1])
local lower = string.lower(ask.text) -- as in the lists of names: lowers only the letters a to z
local hits = {}

local function hit(kind, id, found)
  hits[#hits + 1] = {kind, id, found.name or '', found.account or '', found.server or '', found.state or '',
    found.is_exact and '1' or ''}
end

local function server(id, is_exact)
  local name, owner, node, missing = unpack(redis.call('HMGET', 'server:' .. id, 'name', 'account', 'node', 'missing'))
  if not name then return end
  hit('server', id, {name = name, account = owner, state = missing and 'missing' or node, is_exact = is_exact})
end

-- Includes a deleted snapshot while its history is kept.
local function snapshot(id, is_exact)
  local key = 'snapshot:' .. id
  local name, account, of, status = unpack(redis.call('HMGET', key, 'name', 'account', 'server', 'status'))
  local last = not name and json(redis.call('LINDEX', key .. ':history', -1) or '')
  if type(last) == 'table' then name, account, of, status = last.name, last.account, last.server, 'deleted' end
  if not name and not last then return end
  hit('snapshot', id, {name = name, account = account, server = of, state = status, is_exact = is_exact})
end

local function account(id)
  local servers = redis.call('ZCARD', 'servers:account:' .. id)
  local keys = {'account:' .. id .. ':jobs', 'account:' .. id .. ':snapshots', 'tokens:account:' .. id}
  if servers == 0 and redis.call('EXISTS', unpack(keys)) == 0 then return end
  hit('account', id, {state = tostring(servers), is_exact = true})
end

local function job(id)
  local kind, state, of, owner, name = unpack(redis.call('HMGET', 'job:' .. id, 'kind', 'state', 'server', 'account',
    'server_name'))
  if not kind then return end
  hit('job', id, {name = kind .. ' ' .. (name or ''), account = owner, server = of, state = state, is_exact = true})
end

-- Search by the first digits of an ID. Jobs of an earlier version are only in the list of all jobs.
local function jobs(digits)
  local before, looks = #hits, LOOKS
  for _, list in ipairs({'jobs:id:' .. string.sub(digits, 1, 3), 'jobs'}) do
    local latest = looks > 0 and redis.call('ZREVRANGE', list, 0, looks - 1) or {}
    looks = looks - #latest
    for _, id in ipairs(latest) do
      if string.sub(id, 1, #digits) == digits and #hits - before < ask.limit then attempt('job:' .. id, job, id) end
    end
    if #hits > before then return end
  end
end

-- By a name or its prefix. Entries of deleted objects and expired tokens are skipped.
local function by_name(list, kind, show)
  local from, before, looked = '[' .. lower, #hits, 0
  while looked < LOOKS do
    local members = redis.call('ZRANGEBYLEX', list, from, from .. '\255', 'LIMIT', looked, ask.limit)
    for _, member in ipairs(members) do
      local name, id = string.match(member, '^(.*)%z(%x+)$')
      if id and #hits - before < ask.limit then attempt(kind .. id, show, id, name == lower) end
    end
    looked = looked + #members
    if #members < ask.limit or #hits - before == ask.limit then return end
  end
end

local function nodes()
  local from = '[' .. ask.text
  for _, name in ipairs(redis.call('ZRANGEBYLEX', 'nodes:by:name', from, from .. '\255', 'LIMIT', 0, ask.limit)) do
    hit('node', name, {name = name, is_exact = name == ask.text})
  end
end

local function token(id, is_exact)
  local key = redis.call('HGET', 'tokens', id)
  local name, owner = unpack(key and redis.call('HMGET', key, 'name', 'account') or {})
  if name then hit('token', id, {name = name, account = owner, state = 'valid', is_exact = is_exact}) end
  return name
end

-- The latest entry of a list of the audit log with that field: as a table, or nil. nil also where Redis's account, of
-- an earlier version, may not read the lists.
local function latest(list, field, text)
  local may_read, listed = pcall(redis.call, 'ZREVRANGE', list, 0, LOOKS - 1)
  for _, id in ipairs(may_read and listed or {}) do
    local entry = redis.call('XRANGE', 'audit', id, id, 'COUNT', 1)[1]
    local fields = entry and named(entry[2]) or {}
    if fields[field] == text then return fields end
  end
end

local function request()
  local entry = latest(ask.requests, 'request_id', ask.text)
  if not entry then return end
  hit('request', ask.text, {
    name = (entry.method or '') .. ' ' .. (entry.path or ''), account = entry.account, server = entry.server,
    state = entry.status, is_exact = true,
  })
end

-- A revoked or expired token, found through its audit entries.
local function former_token(id)
  local entry = latest(ask.uses, 'token', id)
  if not entry then return end
  hit('token', id, {name = entry.token_name, account = entry.account, state = 'ended', is_exact = true})
end

local digits = #lower >= 8 and #lower <= 32 and string.match(lower, '^%x+$')
if string.find(ask.text, '^[1-9]%d*$') and #ask.text <= 19 then
  attempt('server:' .. ask.text, server, ask.text, true)
  attempt('snapshot:' .. ask.text, snapshot, ask.text, true)
  account(ask.text)
end
if digits then jobs(digits) end
if digits and #digits == 12 and not attempt('token:', token, digits, true) then former_token(digits) end
nodes()
by_name('servers:by:name', 'server:', server)
by_name('snapshots:by:name', 'snapshot:', snapshot)
by_name('tokens:by:name', 'token:', token)
request()
return hits
