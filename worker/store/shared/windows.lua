-- include: records
-- Runs of schedules that have a window: one for each server that a schedule covers.

local RUNS = 'schedules:runs' -- `<schedule>:<server>` by the time of its start

-- The labels that a schedule by label requires; nil for a schedule of one server. Never empty, because that would
-- cover all servers.
local function labels_wanted(id, schedule)
  if not schedule.server_labels then
    if not is_a('id', schedule.server) then return unreadable('schedule:' .. id, 'server cannot be read') end
    return nil
  end
  local labels = json(schedule.server_labels)
  if type(labels) ~= 'table' or not next(labels) then
    return unreadable('schedule:' .. id, 'server_labels cannot be read')
  end
  return labels
end

-- Whether a schedule covers a server: its own server, or a server of its account that has all of `labels`. Also returns
-- the server's name.
local function covers(schedule, labels, server_id)
  local account, missing, text, name =
    unpack(redis.call('HMGET', 'server:' .. server_id, 'account', 'missing', 'labels', 'name'))
  if account ~= schedule.account or missing then return false end
  if not labels then return server_id == schedule.server, name end
  local has = json(text or '{}')
  if type(has) ~= 'table' then return false end
  for label, value in pairs(labels) do
    if has[label] ~= value then return false end
  end
  return true, name
end
