-- include: clock, records, nodes, states, events, job_lists, snapshots, rate, last_id, claims, restored, shown
-- A node publishes a server's snapshots on disk and the jobs that it has begun. Existing records are not changed,
-- except that missing contents are added. Claims that contradict the records are left out.
-- ask: {node, owner, server, snapshots: [{id, name, description, created_ms, size_mb, status, contents (JSON or '')}],
-- jobs: [{id, kind, snapshot, snapshot_name, snapshot_description, snapshot_created_ms, request_id, undoes,
-- present_only and live ('1' or '')}]}
-- Answers {'published', {IDs of the snapshots that were not known}, {reasons of what was left out}}, {'lease_lost'},
-- {'not_here', why} or {'claim_refused', reason}.
local ask = cjson.decode(ARGV[1])
local MOST = 1000 -- snapshots per call
local JOBS_MOST = 100 -- unfinished jobs per server: more than a node runs at a time
local NAME_BYTES, DESCRIPTION_BYTES, CONTENTS_BYTES = 256, 4096, 65536
local ADDED_JOBS_MOST, ADDED_JOBS_MS = 500, 500 * 60000 -- jobs that a node may add: a burst of 500, then one a minute
local RECORD_BYTES = 1500 -- of a snapshot, besides its texts
local LATEST_MS = 2 ^ 47 -- in the year 6429

if not owns_lease(ask.node, ask.owner) then return {'lease_lost'} end
local node, server_id = ask.node, ask.server
local key = 'server:' .. server_id
local server = read(key)
local refused = refuse_elsewhere(ask, 'publish', server_id, server)
if refused then return refused end
if #ask.snapshots > MOST or #ask.jobs > JOBS_MOST then
  return refuse_claim(ask, 'publish', 'too_many', 'server:' .. server_id)
end
local new, left_out, making = {}, {}, {}

local function leave_out(reason, about)
  left_out[#left_out + 1] = refuse_claim(ask, 'publish', reason, about)[2]
end

local function is_moment(text)
  return is_whole(text) and tonumber(text) < LATEST_MS
end

local function describes(name, description, created_ms)
  return fits(name, NAME_BYTES) and fits(description, DESCRIPTION_BYTES) and is_moment(created_ms)
end

local function why_not_job(begun)
  if not fits(begun.id, 32) or not string.find(begun.id, '^' .. string.rep('%x', 32) .. '$') then return 'malformed' end
  if not KINDS[begun.kind] or not fits(begun.request_id, 128)
      or not describes(begun.snapshot_name, begun.snapshot_description, begun.snapshot_created_ms) then
    return 'malformed'
  end
  if begun.undoes ~= '' and not string.find(begun.undoes, '^%x+$') then return 'malformed' end
  if begun.snapshot == '0' and begun.kind == 'check_create' then return nil end
  if not may_be_given(begun.snapshot) then return 'id_not_given' end
  local of = redis.call('HGET', 'snapshot:' .. begun.snapshot, 'server')
  return of and of ~= server_id and 'other_server' or nil
end

local function why_not_snapshot(snapshot)
  if not may_be_given(snapshot.id) then return 'id_not_given' end
  if not describes(snapshot.name, snapshot.description, snapshot.created_ms) or not is_size(snapshot.size_mb)
      or not fits(snapshot.contents or '', CONTENTS_BYTES) then
    return 'malformed'
  end
  local of, had = unpack(redis.call('HMGET', 'snapshot:' .. snapshot.id, 'server', 'contents'))
  if of and of ~= server_id then return 'other_server' end
  if of then return not had and not may_add(node, #(snapshot.contents or '')) and 'too_many' or nil end
  if snapshot.status ~= 'completed' and not (snapshot.status == 'in_progress' and making[snapshot.id]) then
    return 'status_impossible'
  end
  local counted = redis.call('SCARD', key .. ':counted') -- its account's own limit may be lost with Redis
  if counted >= SNAPSHOTS_PER_SERVER_MOST or is_list_full(server_id) then return 'too_many' end
  local bytes = RECORD_BYTES + #snapshot.name + #snapshot.description + #(snapshot.contents or '')
  return not may_add(node, bytes) and 'too_many' or nil
end

local function add_job(begun)
  local now = now_text()
  local job = {
    v = '1', state = 'in_progress', kind = begun.kind, server = server_id, server_name = text_for_job(server.name),
    account = server.account, node = node, snapshot = begun.snapshot, snapshot_name = begun.snapshot_name,
    snapshot_description = begun.snapshot_description, snapshot_created_ms = begun.snapshot_created_ms,
    request_id = begun.request_id, undoes = begun.undoes, queued_ms = now, started_ms = now, attempts = '1',
    present_only = begun.present_only == '1' and '1' or nil, live = begun.live == '1' and '1' or nil,
  }
  write('job:' .. begun.id, job)
  list_job(begun.id, job)
  if not server.job and not ONLY_LOOKS[begun.kind] then
    server.job = begun.id
    redis.call('HSET', key, 'job', begun.id)
  end
  tell(begun.id, job)
end

local function add(snapshot, contents)
  local record = {
    server = server_id, account = server.account, node = node, name = snapshot.name,
    description = snapshot.description, status = snapshot.status, size_mb = snapshot.size_mb,
    created_ms = snapshot.created_ms, contents = contents,
  }
  take_restored(snapshot.id, record)
  add_snapshot(snapshot.id, record)
  learn_id(snapshot.id)
  new[#new + 1] = snapshot.id
end

-- Select the jobs to add. A job that the store knows must belong to this node and this server.
local begun_here, in_progress = {}, 'account:' .. server.account .. ':jobs:server:' .. server_id .. ':in_progress'
local room = JOBS_MOST - redis.call('ZCARD', in_progress)
for _, begun in ipairs(ask.jobs) do
  local known = redis.call('HMGET', 'job:' .. begun.id, 'node', 'server')
  local why = why_not_job(begun)
  if known[1] then
    if known[1] ~= node or known[2] ~= server_id then leave_out('other_node', 'job:' .. begun.id) end
  elseif why then
    leave_out(why, 'job:' .. begun.id)
  elseif #begun_here >= room or take('node:' .. node .. ':begun', ADDED_JOBS_MOST, ADDED_JOBS_MS) == 0 then
    leave_out('too_many', 'job:' .. begun.id)
  else
    begun_here[#begun_here + 1] = begun
  end
  if not why and begun.kind == 'create' then making[begun.snapshot] = true end
end
for _, snapshot in ipairs(ask.snapshots) do
  local why = why_not_snapshot(snapshot)
  local contents = (snapshot.contents or '') ~= '' and snapshot.contents or nil
  if why then
    leave_out(why, 'snapshot:' .. tostring(snapshot.id))
  elseif redis.call('EXISTS', 'snapshot:' .. snapshot.id) == 0 then
    add(snapshot, contents)
  elseif contents then
    redis.call('HSETNX', 'snapshot:' .. snapshot.id, 'contents', contents)
  end
end
for _, begun in ipairs(begun_here) do add_job(begun) end
redis.call('HDEL', key, 'unpublished')
return {'published', new, left_out}
