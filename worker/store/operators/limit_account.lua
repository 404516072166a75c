-- include: records
-- Set how many snapshots a server of an account may have.
-- ask: {account, snapshots_max: '' for the default}
-- Answers {'admitted'}.
local ask = cjson.decode(ARGV[1])
local key = 'account:' .. ask.account
demand(key, 'hash')
if ask.snapshots_max == '' then
  redis.call('DEL', key)
else
  write(key, {v = '1', snapshots_max = ask.snapshots_max})
end
return {'admitted'}
