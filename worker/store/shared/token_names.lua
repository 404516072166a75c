-- The names of tokens, in which operators find one.

local function list_token(id, name)
  redis.call('ZADD', 'tokens:by:name', 0, string.lower(name) .. '\0' .. id)
end
