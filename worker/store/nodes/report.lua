-- include: clock, records, nodes, findings, placement, claims, off, rate
-- A node reports its servers and, from time to time, its software and storage.
-- ask: {node, owner, silent_ms, placement: 'claim' or 'declared', servers: [{id, account, name, power}] (all as text),
-- left: result (see `conclude`) of a job whose server has left its node, about: JSON of the node or '', free_bytes: of
-- the pool with the least, boot: the boot ID of its host's kernel, or '', digest: of the servers}
-- Answers {'reported', conflicts, fresh, gone, accounts, when an operator last requested a reconciliation, or '',
-- reasons of what was omitted}, {'lease_lost'} or {'claim_refused', reason}.
-- conflicts: servers that another node has; they stay there until that node no longer reports them, or an operator
-- places them here. fresh: servers whose snapshots the node must publish before one can be created: they are new here,
-- or Redis has lost its data. gone: servers that the node had before. accounts: {server, account, ...} of those that
-- the node reports with a wrong account.
local ask = cjson.decode(ARGV[1])
local MOST = 2000 -- servers of one node
local CHANGED_MOST = 400 -- servers that one report adds or removes; the next report continues with the others
local ADDED_MOST, ADDED_MS = 4000, 4000 * 60000 -- servers that a node may add: this many at once, then one a minute
local NAME_BYTES = 256
local CONFLICT_MS = 60000 -- much longer than the end of a migration takes
local REPORTED_MS = 60000 -- interval at which a report is processed completely even without known changes
local is_clean = true -- the answer has nothing for the node, and the records of its servers are up to date

if not owns_lease(ask.node, ask.owner) then return {'lease_lost'} end
if #ask.servers > MOST then return refuse_claim(ask, 'report', 'too_many', '') end
local node = ask.node
local added = 'node:' .. node .. ':added'
local mine, claimed = 'node:' .. node .. ':servers', 'node:' .. node .. ':claimed'
local conflicts, fresh, gone, accounts, left_out, present, contested = {}, {}, {}, {}, {}, {}, {}

local changed = 0

local function may_change()
  changed = changed + 1
  is_clean = is_clean and changed <= CHANGED_MOST
  return changed <= CHANGED_MOST
end

local function leave_out(reason, id)
  left_out[#left_out + 1] = refuse_claim(ask, 'report', reason, 'server:' .. id)[2]
end

-- A record with an ID that a Lua number does not represent exactly could not be read.
local function is_number(text)
  return string.find(text, '^[1-9]%d*$') and number(text) ~= nil
end

-- Another node has the server. This is reported only if it lasts, because a migration may be ending.
local function contest(id, holder)
  conflicts[#conflicts + 1] = id
  contested[id] = true
  redis.call('HSETNX', claimed, id, now_ms())
  if now_ms() - (number(redis.call('HGET', claimed, id)) or 0) > CONFLICT_MS then
    leave_out(node_is_silent(holder, ask.silent_ms) and 'silent_node' or 'other_node', id)
  end
end

-- The valid account is that of the record. After a change, a node reports the previous one for a while.
local function account_of(found, known)
  local account = known.account or found.account
  if found.account ~= account then
    accounts[#accounts + 1] = found.id
    accounts[#accounts + 1] = account
    if found.account ~= known.account_before then leave_out('other_account', found.id) end
  elseif known.account_before then
    redis.call('HDEL', 'server:' .. found.id, 'account_before')
  end
  return account
end

local function have(found, known)
  local key, is_here = 'server:' .. found.id, known.node == node
  local account = account_of(found, known)
  if known.node and not is_here then move_to_node(found.id, known, node, ask.left) end
  list_server(found.id, known, node, account, found.name)
  -- write only changes: each write goes to Redis's file, and a node reports all its servers every few seconds
  if not (is_here and known.v == LISTED and known.name == found.name and known.power == found.power) then
    redis.call('HSET', key, 'v', LISTED, 'name', found.name, 'account', account, 'node', node, 'power', found.power)
  end
  -- when it was last known to run
  if known.power == 'on' and found.power ~= 'on' then redis.call('HSET', key, 'ran_ms', now_ms()) end
  if known.power ~= 'on' and found.power == 'on' then back_on(found.id, known) end
  if not is_here then redis.call('HSET', key, 'unpublished', '1') end
  if not is_here or known.unpublished then fresh[#fresh + 1] = found.id end
  redis.call('HDEL', key, 'missing', 'placed')
  redis.call('SADD', mine, found.id)
  return true
end

local function lose(id, server)
  redis.call('SREM', mine, id)
  gone[#gone + 1] = id
  if server.node ~= node then return end
  unlist_server(id, server)
  redis.call('HSET', 'server:' .. id, 'missing', '1')
  redis.call('HDEL', 'server:' .. id, 'placed')
  if redis.call('EXISTS', 'server:' .. id .. ':snapshots') == 1 then
    local found = {finding = 'missing_server', tag = '', at = string.format('%.0f', now_ms() / 1000)}
    redis.call('HSET', 'node:' .. node .. ':findings', id, cjson.encode({found}))
    redis.call('ZADD', 'findings', now_ms(), id)
  else
    forget_findings(node, id)
  end
end

for _, found in ipairs(ask.servers) do
  if not is_number(found.id) then
    leave_out('malformed', '')
  elseif not is_number(found.account) or not fits(found.name, NAME_BYTES) or not POWERS[found.power] then
    leave_out('malformed', found.id)
    present[found.id] = true -- it is present, even if it is not recorded
  else
    local key = 'server:' .. found.id
    local known = look_up(key)
    if not known and redis.call('EXISTS', key) == 1 then
      present[found.id] = true -- it is unreadable: leave it unchanged and report it to operators
      is_clean = false
    elseif not known and ask.placement == 'declared' then
      leave_out('undeclared_server', found.id)
    elseif not known and changed < CHANGED_MOST and take(added, ADDED_MOST, ADDED_MS) == 0 then
      leave_out('too_many', found.id)
    elseif known and known.node and known.node ~= node and (not known.missing or known.placed) then
      contest(found.id, known.node)
    else
      present[found.id] = true
      known = known or {}
      if known.node == node or may_change() then is_clean = attempt(key, have, found, known) and is_clean end
    end
  end
end
for _, id in ipairs(redis.call('HKEYS', claimed)) do
  if not contested[id] then redis.call('HDEL', claimed, id) end
end
for _, id in ipairs(redis.call('SMEMBERS', mine)) do
  if not present[id] and may_change() then lose(id, look_up('server:' .. id) or {}) end
end
note_about(ask)
for _, told in ipairs({conflicts, fresh, gone, accounts, left_out}) do is_clean = is_clean and #told == 0 end
if is_clean then
  redis.call('SET', 'node:' .. node .. ':reported', ask.digest, 'PX', REPORTED_MS)
else
  forget_report(node)
end
local reconcile_ms = redis.call('HGET', 'node:' .. node, 'reconcile_ms') or ''
return {'reported', conflicts, fresh, gone, accounts, reconcile_ms, left_out}
