-- include: clock, ids, records, nodes, placement, last_id, restored, token_names
-- Write rows of a backup. Existing fields are not changed: only missing ones are added.
-- ask: {last_id ('': none), made_ms, age_ms: of the backup, rows: [{kind, key, record: {field: text}, lifetime_ms
-- (missing: it does not end)}]}
-- Answers {number of rows that were written}.
local ask = cjson.decode(ARGV[1])
-- minimum time until a snapshot expires, because its owner may have changed the expiry after the backup
local SHORTEST_MS = 7 * 86400000
local written = 0

local function id_of(row)
  return string.match(row.key, '([^:]+)$')
end

local function put(row)
  write(row.key, row.record)
  if row.lifetime_ms then redis.call('PEXPIRE', row.key, row.lifetime_ms - ask.age_ms) end
end

local PUT = {}

function PUT.token(row)
  put(row)
  redis.call('HSET', 'tokens', row.record.id, row.key)
  list_token(row.record.id, row.record.name or '')
  if row.record.account ~= '' then redis.call('SADD', 'tokens:account:' .. row.record.account, row.key) end
end

function PUT.credential(row)
  put(row)
  redis.call('HSET', 'node:' .. row.record.node .. ':credentials', row.record.id, row.key)
  redis.call('SADD', 'nodes:credentials', row.record.node)
end

function PUT.schedule(row)
  put(row)
  local of, server = 'account:' .. row.record.account .. ':schedules', row.record.server
  local lists = server and {of, of .. ':server:' .. server} or {of .. ':labels'}
  for _, list in ipairs(lists) do redis.call('ZADD', list, row.record.created_ms, id_of(row)) end
  if number(row.record.next_ms) then redis.call('ZADD', 'schedules:due', row.record.next_ms, id_of(row)) end
end

-- A record of any other kind that belongs to an account: it is in `account:<account>:<kind>s` by created_ms.
local function put_resource(row)
  put(row)
  redis.call('ZADD', 'account:' .. row.record.account .. ':' .. row.kind .. 's', row.record.created_ms, id_of(row))
end

function PUT.webhook(row)
  row.record.claim, row.record.claimed_until_ms = nil, nil -- its sender is gone
  put_resource(row)
end

PUT.secret = put

PUT.account = put

-- Like a declaration by `operators/place_server`: no other node gets the server until its node reports, with or without
-- it.
function PUT.server(row)
  local of = row.record
  forget_report(of.node)
  list_server(id_of(row), {}, of.node, of.account, of.name or id_of(row))
  redis.call('HSET', row.key, 'v', LISTED, 'power', 'off', 'missing', '1', 'unpublished', '1', 'placed', '1')
  redis.call('SADD', 'node:' .. of.node .. ':servers', id_of(row))
  put(row)
end

-- A snapshot's record comes from its node, and then takes over these fields.
function PUT.snapshot(row)
  keep_restored(id_of(row), row.record, ask.made_ms)
end

function PUT.node(row)
  put(row)
  if row.record.paused_ms then redis.call('SADD', 'nodes:paused', id_of(row)) end
end

-- Whether there is something to write. The pause of a running node, and missing fields of a published server or
-- snapshot, are added to the record.
local function is_lacking(row)
  if row.lifetime_ms and row.lifetime_ms <= ask.age_ms then return false end
  if redis.call('EXISTS', row.key) == 0 then return true end
  return row.kind == 'node' and redis.call('HEXISTS', row.key, 'paused_ms') == 0
end

-- When a snapshot expires; nil: never. If a customer has removed the expiry, the field is empty.
local function expiry_of(snapshot)
  local expires_ms = number(snapshot.expires_ms)
  return expires_ms and string.format('%.0f', math.max(expires_ms, now_ms() + SHORTEST_MS))
end

-- The function that writes a row; nil for a row of a newer release that has no account.
local function writer_of(row)
  local is_resource = row.record.account and number(row.record.created_ms)
  return PUT[row.kind] or is_resource and put_resource
end

local function put_row(row)
  if row.kind == 'snapshot' then row.record.expires_ms = expiry_of(row.record) end
  if is_lacking(row) then
    writer_of(row)(row)
  elseif row.kind == 'snapshot' then
    return add_restored(id_of(row), row.record)
  elseif row.kind == 'server' then
    local added = 0
    for _, field in ipairs({'consistency', 'labels'}) do
      local held = row.record[field]
      if held and redis.call('HSETNX', row.key, field, held) == 1 then added = 1 end
    end
    return added
  else
    return 0
  end
  return 1
end

if is_id(ask.last_id) and tonumber(ask.last_id) > last_id() and may_be_given(ask.last_id) then
  redis.call('SET', 'snapshots:last_id', ask.last_id)
end
for _, row in ipairs(ask.rows) do
  if writer_of(row) then written = written + (attempt(row.key, put_row, row) or 0) end
end
return {written}
