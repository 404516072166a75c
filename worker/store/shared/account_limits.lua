-- include: records, states
-- The limits that operators set for an account.

-- How many snapshots a server of the account may have. A record that can't be read sets no limit of its own.
local function snapshots_max(account)
  local limits = look_up('account:' .. account)
  return limits and number(limits.snapshots_max) or SNAPSHOTS_PER_SERVER
end
